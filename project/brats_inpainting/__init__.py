"""Fills lesions in brain MRI with plausible healthy tissue."""
