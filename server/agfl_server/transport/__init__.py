"""The one port that nodes reach, and what strangers may send to it."""
