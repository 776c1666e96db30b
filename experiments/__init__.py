"""Launchers: several runs by one command."""
