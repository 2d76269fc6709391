"""Files of users: read within bounds, written whole or not at all. Everything the system refuses becomes one line."""
