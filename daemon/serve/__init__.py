"""Inside the server: load, verify, warm up, switch, drain, answer."""
