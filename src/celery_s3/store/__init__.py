"""Clients and wrappers of an S3 bucket."""
