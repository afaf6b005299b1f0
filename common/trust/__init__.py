"""Certificates, signatures and the audit chain."""
