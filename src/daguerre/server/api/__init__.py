"""The routes of the page, of OpenAI's clients, and of monitoring."""
