"""Marker discovery: anomalous regions, how D sees them, and groups of those that look alike."""
