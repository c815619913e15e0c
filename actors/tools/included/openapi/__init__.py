"""HTTP APIs as tools: each operation of an OpenAPI 3.0 or 3.1 document is one."""
