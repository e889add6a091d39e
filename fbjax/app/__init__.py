"""The sampling page: what it asks, what it shows, and the page itself, which alone needs Gradio."""
