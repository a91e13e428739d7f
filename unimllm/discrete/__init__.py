"""Family 1: pictures as SemHiTok codes in the vocabulary; reading and drawing are next-token prediction."""
