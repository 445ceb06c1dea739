"""HTTP: the OpenAI API in front of the ingress protocol."""
