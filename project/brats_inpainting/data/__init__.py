"""Reading, checking and preparing cases; windows; training data."""
