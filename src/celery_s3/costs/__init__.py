"""Prices, the model of what a deployment asks for, what workers tell."""
