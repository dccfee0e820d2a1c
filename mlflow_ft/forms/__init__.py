"""The forms of a trained model: compared with the trained model and described in a card."""
