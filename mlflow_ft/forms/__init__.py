"""The forms of a trained model: compared with the model that was trained, described in a card."""
