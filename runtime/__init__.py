"""What every process shares. Read messages/, then actor.py, link.py and transport.py."""
