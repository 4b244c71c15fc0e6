"""Appraisal policies (an operator's demands on a host), and their strict parser."""
