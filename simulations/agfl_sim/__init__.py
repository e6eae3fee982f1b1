"""The same server and client code on one machine."""
