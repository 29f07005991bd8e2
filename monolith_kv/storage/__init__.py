"""Files of a store: bytes in, checked bytes out; nothing here knows what a table is."""
