"""Stored messages: dead letters, parked messages, backups."""
