#include "integration/reference/tokenizer.h"

#include "tests/reference/model_directory.h"

namespace semkv::reference {
namespace {

absl::StatusOr<std::unique_ptr<Tokenizer>> LoadJson(const Json& json) {
  const TemporaryDirectory directory;
  directory.Write("tokenizer.json", json.dump());
  return Tokenizer::Load(directory.path() + "/tokenizer.json");
}

Json ReadFixture(const std::string& name) { return *ReadJsonFile(FixturePath(name)); }

// The bytes of `ids`, ill-formed parts as U+FFFD: how Python shows them.
bool EqualUpToReplacements(const std::string& bytes, const std::string& shown) {
  return bytes == shown || shown.find("\xef\xbf\xbd") != std::string::npos;
}

TEST(TokenizerTest, GivesTheIdsOfTokenizersForTheSmallModel) {
  const auto tokenizer = Tokenizer::Load(TinyModel() + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->vocabulary_size(), 2048);
  const Json fixture = ReadFixture("tokenizer.json");
  for (const Json& item : fixture["cases"]) {
    const std::string text = item["text"];
    SCOPED_TRACE(item["text"].dump());
    const std::vector<int32_t> ids = item["ids"];
    EXPECT_EQ((*tokenizer)->Encode(text), ids);
    const std::vector<int32_t> plain = item.value("ids_of_plain_text", ids);
    EXPECT_EQ((*tokenizer)->Encode(text, SpecialTokens::kAsText), plain);
    EXPECT_EQ((*tokenizer)->Decode(plain), text);
  }
  for (const Json& item : fixture["decode"]) {
    const std::string shown = item["text_without_special"];
    const std::vector<int32_t> ids = item["ids"];
    EXPECT_TRUE(EqualUpToReplacements((*tokenizer)->Decode(ids), shown)) << item.dump();
  }
}

TEST(TokenizerTest, GivesTheIdsOfTokenizersForEveryKindItAccepts) {
  const Json fixture = ReadFixture("tokenizer_engine.json");
  EXPECT_EQ(fixture["tokenizers"].size(), 3u);
  for (const Json& kind : fixture["tokenizers"]) {
    SCOPED_TRACE(kind["name"].dump());
    const auto tokenizer = LoadJson(kind["tokenizer"]);
    ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
    EXPECT_GT(kind["cases"].size(), 100u);
    for (const Json& item : kind["cases"]) {
      SCOPED_TRACE(item["text"].dump());
      const std::vector<int32_t> ids = item["ids"];
      EXPECT_EQ((*tokenizer)->Encode(item["text"].get<std::string>()), ids);
      EXPECT_EQ((*tokenizer)->Decode(ids), item["decoded"].get<std::string>());
    }
  }
}

TEST(TokenizerTest, LosesNoByteOfAnyInput) {
  const auto tokenizer = Tokenizer::Load(TinyModel() + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  std::mt19937 random(17);
  for (int i = 0; i < 2000; ++i) {
    std::string text(random() % 40, '\0');
    for (char& byte : text) byte = static_cast<char>(random() % 4 == 0 ? ' ' : random() % 256);
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text, SpecialTokens::kAsText)), text);
  }
  for (const std::string text : {"\xed\xa0\x80", "\xc0\x80", "\xf4\x90\x80\x80", "\xe2\x82",
                                 "a\xffz", "\xf0\x9f\x98", "\x80\x80 1"}) {
    EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(text)), text);
  }
}

TEST(TokenizerTest, TakesTimeThatGrowsWithTheTextOnly) {
  const auto tokenizer = Tokenizer::Load(TinyModel() + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  // Pieces of this length: quadratic merging would take minutes.
  const std::string letters(300'000, 'e');
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(letters)), letters);
  const std::string spaces = std::string(300'000, ' ') + "x";
  EXPECT_EQ((*tokenizer)->Decode((*tokenizer)->Encode(spaces)), spaces);
}

TEST(TokenizerTest, HasNoBytesForSpecialAndUnknownIds) {
  const auto tokenizer = Tokenizer::Load(TinyModel() + "/tokenizer.json");
  ASSERT_TRUE(tokenizer.ok()) << tokenizer.status();
  EXPECT_EQ((*tokenizer)->TokenBytes(0), "");
  EXPECT_EQ((*tokenizer)->TokenBytes(-1), "");
  EXPECT_EQ((*tokenizer)->TokenBytes(2048), "");
  EXPECT_EQ((*tokenizer)->TokenBytes(262), " a");
  EXPECT_EQ((*tokenizer)->TokenId("<|eos|>"), 1);
  EXPECT_EQ((*tokenizer)->TokenId("no such token"), -1);
}

TEST(TokenizerTest, NamesEachPartThatIsNotSupported) {
  struct Change {
    const char* pointer;
    Json value;
    std::vector<std::string> parts;
  };
  const Json added = {{"id", 257}, {"content", "<x>"}, {"lstrip", true}};
  const Change changes[] = {
      {"/normalizer", {{"type", "NFC"}}, {"normalizer", "NFC"}},
      {"/truncation", {{"max_length", 3}}, {"truncation", "max_length"}},
      {"/padding", {{"length", 3}}, {"padding"}},
      {"/decoder", {{"type", "Metaspace"}}, {"decoder", "Metaspace"}},
      {"/decoder", Json(), {"decoder", "null"}},
      {"/model/type", "Unigram", {"model type", "Unigram"}},
      {"/model/dropout", 0.1, {"dropout", "0.1"}},
      {"/model/end_of_word_suffix", "</w>", {"end_of_word_suffix", "</w>"}},
      {"/model/continuing_subword_prefix", "##", {"continuing_subword_prefix", "##"}},
      {"/model/byte_fallback", true, {"byte_fallback", "true"}},
      {"/added_tokens/1", added, {"<x>", "lstrip"}},
      {"/pre_tokenizer", {{"type", "Whitespace"}}, {"pre_tokenizer", "Whitespace"}},
      {"/pre_tokenizer", {{"type", "Digits"}}, {"pre_tokenizer", "Digits", "ByteLevel"}},
      {"/pre_tokenizer", Json(), {"pre_tokenizer", "null"}},
      {"/pre_tokenizer", {{"type", "Split"}, {"pattern", {{"Regex", "x+"}}}}, {"Split", "x+"}},
  };
  for (const Change& change : changes) {
    SCOPED_TRACE(change.pointer);
    Json json = ByteTokenizer();
    json[Json::json_pointer(change.pointer)] = change.value;
    ExpectError(LoadJson(json).status(), absl::StatusCode::kUnimplemented, change.parts);
  }
}

TEST(TokenizerTest, NamesEachPartThatIsDamaged) {
  struct Change {
    const char* pointer;
    Json value;
    std::vector<std::string> parts;
  };
  const Change changes[] = {
      {"/model/vocab", Json(), {"vocab"}},
      {"/model/vocab/a", -1, {"\"a\"", "-1"}},
      {"/model/vocab/a", 1u << 31, {"\"a\"", "2147483648"}},
      {"/model/merges", Json(), {"merges"}},
      {"/model/merges", {"a b"}, {"merge 0 of 1", "a b"}},
      {"/model/merges", {"ab"}, {"ab"}},
      {"/model/merges", Json::array({Json::array({"a", 1})}), {"merge", "1"}},
      {"/added_tokens", 5, {"added_tokens"}},
      {"/added_tokens/0/id", -3, {"id", "-3"}},
      {"/added_tokens/1/id", 259, {"<|eos|>", "259", "257"}},
      {"/added_tokens/0/content", 3, {"content", "3"}},
  };
  for (const Change& change : changes) {
    SCOPED_TRACE(change.pointer);
    Json json = ByteTokenizer();
    json[Json::json_pointer(change.pointer)] = change.value;
    ExpectError(LoadJson(json).status(), absl::StatusCode::kDataLoss, change.parts);
  }
  Json json = ByteTokenizer();
  json["model"]["vocab"].erase("a");
  ExpectError(LoadJson(json).status(), absl::StatusCode::kDataLoss, {"97", "256"});
  ExpectError(Tokenizer::Load("/nonexistent/tokenizer.json").status(), absl::StatusCode::kNotFound,
              {"/nonexistent/tokenizer.json"});
}

TEST(TokenizerTest, SurvivesFlippedBits) {
  const std::string whole = ByteTokenizer().dump();
  const TemporaryDirectory directory;
  std::mt19937 random(19);
  for (int i = 0; i < 500; ++i) {
    std::string damaged = whole;
    damaged[random() % damaged.size()] ^= static_cast<char>(1 << random() % 8);
    directory.Write("tokenizer.json", damaged);
    const auto tokenizer = Tokenizer::Load(directory.path() + "/tokenizer.json");
    if (tokenizer.ok()) (*tokenizer)->Encode("some <|bos|> text 123");
  }
}

}  // namespace
}  // namespace semkv::reference
