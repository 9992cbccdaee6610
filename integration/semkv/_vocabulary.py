"""The bytes that each token id decodes to, which semkv_vocabulary_set wants, of a Hugging Face
tokenizer: byte-level BPE (GPT-2, Llama 3, Qwen) and SentencePiece (Llama 2, Gemma, Mistral)."""


def _byte_of_char():
    """GPT-2's printable stand-ins for bytes, as byte-level tokenizers use them."""
    printable = [*range(33, 127), *range(161, 173), *range(174, 256)]
    table = {chr(byte): byte for byte in printable}
    others = [byte for byte in range(256) if byte not in set(printable)]
    table.update({chr(256 + i): byte for i, byte in enumerate(others)})
    return table


def _is_byte_level(tokens):
    ordinary = [token for token in tokens if token]
    # Only byte-level vocabularies write a space this way, and SentencePiece's is none of its signs.
    return any("Ġ" in token for token in ordinary) and not any("▁" in t for t in ordinary)


def _sentencepiece_bytes(token):
    if len(token) == 6 and token.startswith("<0x") and token.endswith(">"):
        return bytes([int(token[3:5], 16)])
    return token.replace("▁", " ").encode()


def vocabulary_bytes(tokenizer):
    """A list of bytes, one per id; empty for special and unused ids."""
    size = len(tokenizer)
    tokens = tokenizer.convert_ids_to_tokens(list(range(size)))
    special = set(tokenizer.all_special_ids)
    table = _byte_of_char()
    byte_level = _is_byte_level(tokens)
    vocabulary = []
    for i, token in enumerate(tokens):
        if token is None or i in special:
            vocabulary.append(b"")
        elif byte_level:
            # Tokens that were added later stand for their own text.
            known = all(char in table for char in token)
            vocabulary.append(bytes(table[c] for c in token) if known else token.encode())
        else:
            vocabulary.append(_sentencepiece_bytes(token))
    return vocabulary
