"""Surfaces: measured, aligned, modelled."""
