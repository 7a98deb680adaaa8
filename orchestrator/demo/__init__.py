"""Two MCP servers that work without the internet, so that the first pipeline runs anywhere."""
