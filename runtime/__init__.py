"""What every process shares. Read messages.py, then actor.py, link.py and transport.py."""
