"""Policies that Kairos is compared with; no server runs them from here."""
