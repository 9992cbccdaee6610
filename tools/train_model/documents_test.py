"""Promises of documents.py and real_text.py. Standard library only."""
import hashlib
import unittest

import documents
import real_text


def count(text):
    return max(1, len(text) // 4)


class DocumentsTest(unittest.TestCase):

    def test_same_seed_same_document(self):
        for kind in documents.EVALUATION_KINDS:
            first = documents.evaluation_document(kind, 1024, 7, count)
            self.assertEqual(first, documents.evaluation_document(kind, 1024, 7, count))
            self.assertNotEqual(first[0], documents.evaluation_document(kind, 1024, 8, count)[0])

    def test_documents_do_not_change_between_versions(self):
        text, _ = documents.evaluation_document("facts4", 1024, 1, count)
        self.assertEqual(hashlib.sha256(text.encode()).hexdigest()[:16], "836aa0e7c1afc63d")

    def test_training_and_validation_draw_different_streams(self):
        train, validation = (documents.generator(s, 1) for s in ("train", "validation"))
        self.assertNotEqual([train.random() for _ in range(4)],
                            [validation.random() for _ in range(4)])

    def test_documents_hold_their_facts_and_fit(self):
        for kind in documents.EVALUATION_KINDS:
            text, asked = documents.evaluation_document(kind, 1024, 3, count)
            self.assertLess(count(text), 1024)
            if kind.startswith("facts"):
                self.assertEqual(len(asked), int(kind[5:]))
            for item in asked:
                sentence = text[item.begin:item.end]
                self.assertTrue(sentence.endswith("."))
                if kind != "two_hop":  # its two sentences come in either order
                    self.assertIn(item.fact.value + ".", sentence)
                self.assertLessEqual(item.tokens_after, 1024)

    def test_a_document_states_a_key_once(self):
        text, _ = documents.evaluation_document("dense", 4096, 1, count)
        keys = [sentence.rsplit(" is ", 1)[0] for sentence in text.split(".") if sentence]
        self.assertEqual(len(keys), len(set(keys)))

    def test_restated_prompt_goes_on_where_the_fact_does(self):
        fact = documents.simple_fact("The motto of the X is", "What is the motto of the X?", " y")
        self.assertEqual(fact.prompt(True),
                         "\nQuestion: What is the motto of the X? Answer: The motto of the X is")
        self.assertEqual(fact.prompt(False), "\nQuestion: What is the motto of the X? Answer:")

    def test_too_few_tokens_are_refused(self):
        with self.assertRaises(ValueError):
            documents.evaluation_document("facts16", 256, 1, count)


class RealTextTest(unittest.TestCase):

    def test_roff_becomes_plain_text(self):
        page = '.\\" note\n.SH NAME\nls \\- list\n.B \\-a\nis\\fI all\\fP\n.PP\nEnd'
        self.assertEqual(real_text.plain_roff(page), "Name\nls - list -a is all\n\nEnd")

    def test_filler_is_a_scrap_that_ends_in_a_period(self):
        filler = real_text.RealFiller(["One two three. Four five six seven eight. " * 100])
        scrap = filler(documents.generator("validation", 1))
        self.assertTrue(scrap.startswith(" ") and scrap.endswith("."))
        self.assertLess(len(scrap), 180)

    def test_no_text_is_false(self):
        self.assertFalse(real_text.RealFiller([]))


if __name__ == "__main__":
    unittest.main()
