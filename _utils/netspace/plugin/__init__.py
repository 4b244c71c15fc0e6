"""Conversions between Salt and the library that several plugins share. Imports no Salt."""
