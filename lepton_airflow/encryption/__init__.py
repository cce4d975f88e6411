"""Column encryption over Arrow arrays, in Google Tink's wire format."""
