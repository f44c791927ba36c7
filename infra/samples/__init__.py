"""Sample definitions that `turnlog up` applies."""
