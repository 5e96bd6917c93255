"""The shipped configs; ``lit-sphere fit --config NAME`` finds them from any folder."""
