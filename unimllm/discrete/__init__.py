"""Family 1: pictures as SemHiTok codes in the language model's vocabulary; reading and drawing are next-token prediction."""
