"""Booth's service: control plane, training, publishing and serving on a Ray cluster."""
