"""The same work on monolith_kv and on what people use today, each in a process of its own."""
