"""One adapter for each contender; a module imports its library when it is created."""
