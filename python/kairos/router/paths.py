"""The endpoints whose requests are generations."""

GENERATE = "/generate"
COMPLETIONS = "/v1/completions"
CHAT = "/v1/chat/completions"
RESPONSES = "/v1/responses"
PATHS = frozenset((GENERATE, COMPLETIONS, CHAT, RESPONSES))
