"""The operator's folder: certificates, the roster, who was admitted."""
