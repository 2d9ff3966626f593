"""Tools for healthy brains, run on filled scans whose truth is known: segmentation, registration, bias field."""
