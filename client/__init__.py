"""Runs inside one hospital."""
