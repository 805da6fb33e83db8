"""Every port in memory and a clock moved by hand; shipped, so that plug-ins can be tested with it."""
