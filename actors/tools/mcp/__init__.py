"""Other people's tools by the Model Context Protocol, and the company's tools for other people's hosts."""
