"""Weighbridge over HTTP."""
