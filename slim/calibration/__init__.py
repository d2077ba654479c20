"""Calibration: every head and block measured on rows, the loss sketch, the forecast and its check."""
