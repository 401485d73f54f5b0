"""The parts that come with fulmen: plugins like any other."""
