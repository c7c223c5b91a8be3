"""Bytes and values: encoding, decoding, compression, raw bytes."""
