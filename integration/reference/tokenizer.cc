#include "integration/reference/tokenizer.h"

#include <algorithm>
#include <array>
#include <utility>

#include "absl/container/flat_hash_map.h"
#include "absl/status/status.h"
#include "absl/strings/match.h"
#include "absl/strings/str_cat.h"
#include "integration/reference/byte_pairs.h"
#include "integration/reference/json_file.h"
#include "integration/reference/pre_tokenizer.h"
#include "integration/reference/status_macros.h"
#include "integration/reference/utf8.h"

namespace semkv::reference {

namespace {

// Beyond any vocabulary; ids of a damaged file must not size our tables.
constexpr int32_t kMaxId = (1 << 22) - 1;

// GPT-2's byte alphabet: the code point that stands for each byte in the vocabulary. Printable
// Latin-1 stands for itself, the other 68 bytes for U+0100 and up.
std::array<uint32_t, 256> ByteAlphabet() {
  std::array<uint32_t, 256> alphabet;
  uint32_t next = 0x100;
  for (uint32_t byte = 0; byte < 256; ++byte) {
    const bool printable = (byte >= '!' && byte <= '~') || (byte >= 0xa1 && byte != 0xad);
    alphabet[byte] = printable ? byte : next++;
  }
  return alphabet;
}

// The bytes that a vocabulary entry stands for; text outside the alphabet, as in added tokens,
// stands for itself.
std::string BytesOfToken(const std::string& token, const std::array<int32_t, 0x200>& byte_of) {
  std::string bytes;
  absl::string_view rest = token;
  while (!rest.empty()) {
    uint32_t code_point = 0;
    const size_t length = Utf8CharacterBytes(rest, &code_point);
    if (length == 0 || code_point >= byte_of.size() || byte_of[code_point] < 0) return token;
    bytes.push_back(static_cast<char>(byte_of[code_point]));
    rest.remove_prefix(length);
  }
  return bytes;
}

// An added token, cut out of the text before anything else.
struct AddedToken {
  std::string content;
  int32_t id;
  bool normalized;
  bool special;
};

}  // namespace

struct Tokenizer::Rep {
  absl::flat_hash_map<std::string, int32_t> ids;  // by vocabulary text
  std::vector<std::string> bytes;                 // by id; empty if special
  std::array<int32_t, 256> byte_ids;              // the token of each single byte
  // Of the piece as a whole, in bytes: filled only if ignore_merges.
  absl::flat_hash_map<std::string, int32_t> whole_pieces;
  BytePairs pairs;
  PreTokenizer pre_tokenizer;
  // By first byte, longest first: those searched before normalisation, then the others.
  std::array<std::array<std::vector<AddedToken>, 256>, 2> added;

  absl::Status ReadParts(const Json& json);
  absl::Status ReadVocabulary(const Json& model);
  absl::Status ReadMerges(const Json& model);
  absl::Status ReadAddedTokens(const Json& json);
  void SetToken(const std::string& token, int32_t id, const std::array<int32_t, 0x200>& byte_of);

  int32_t TokenId(absl::string_view token) const;
  void EncodePiece(const std::string& piece, std::vector<int32_t>& out) const;
  void EncodeText(absl::string_view text, SpecialTokens special, size_t pass,
                  std::vector<int32_t>& out) const;
  const AddedToken* AddedTokenAt(absl::string_view text, SpecialTokens special, size_t pass) const;
};

namespace {

// Refuses what would change ids and is not computed.
absl::Status CheckSupported(const Json& json) {
  for (const char* part : {"normalizer", "truncation", "padding"}) {
    const Json& value = JsonMember(json, part);
    if (!value.is_null()) {
      return absl::UnimplementedError(
          absl::StrCat(part, " is ", JsonExcerpt(value), "; supported is null"));
    }
  }
  const Json& decoder = JsonMember(json, "decoder");
  if (JsonMember(decoder, "type") != "ByteLevel") {
    return absl::UnimplementedError(
        absl::StrCat("decoder is ", JsonExcerpt(decoder), "; supported is ByteLevel"));
  }
  const Json& model = JsonMember(json, "model");
  // Old files leave the type out; of those only BPE has merges.
  const Json& type = JsonMember(model, "type");
  if (type != "BPE" && !(type.is_null() && model.contains("merges"))) {
    return absl::UnimplementedError(
        absl::StrCat("model type is ", JsonExcerpt(type), "; supported is \"BPE\""));
  }
  for (const char* field : {"dropout", "continuing_subword_prefix", "end_of_word_suffix"}) {
    const Json& value = JsonMember(model, field);
    if (!value.is_null() && value != "" && value != 0.0) {
      return absl::UnimplementedError(
          absl::StrCat("model ", field, " is ", JsonExcerpt(value), "; supported is null"));
    }
  }
  SEMKV_ASSIGN_OR_RETURN(const bool byte_fallback, BoolMember(model, "byte_fallback", false));
  if (byte_fallback) {
    return absl::UnimplementedError("model byte_fallback is true; supported is false");
  }
  return absl::OkStatus();
}

std::array<int32_t, 0x200> BytesByCodePoint() {
  std::array<int32_t, 0x200> byte_of;
  byte_of.fill(-1);
  const std::array<uint32_t, 256> alphabet = ByteAlphabet();
  for (int32_t byte = 0; byte < 256; ++byte) byte_of[alphabet[byte]] = byte;
  return byte_of;
}

// A merge is "a b" or ["a", "b"].
absl::Status SplitMerge(const Json& merge, std::pair<std::string, std::string>& parts) {
  if (merge.is_array() && merge.size() == 2 && merge[0].is_string() && merge[1].is_string()) {
    parts = {merge[0].get<std::string>(), merge[1].get<std::string>()};
    return absl::OkStatus();
  }
  if (merge.is_string()) {
    const std::string text = merge.get<std::string>();
    const size_t space = text.find(' ');
    if (space != std::string::npos && text.find(' ', space + 1) == std::string::npos) {
      parts = {text.substr(0, space), text.substr(space + 1)};
      return absl::OkStatus();
    }
  }
  return absl::DataLossError(absl::StrCat("merge ", JsonExcerpt(merge), " is no pair of tokens"));
}

}  // namespace

void Tokenizer::Rep::SetToken(const std::string& token, int32_t id,
                              const std::array<int32_t, 0x200>& byte_of) {
  ids[token] = id;
  if (static_cast<size_t>(id) >= bytes.size()) bytes.resize(id + 1);
  bytes[id] = BytesOfToken(token, byte_of);
}

absl::Status Tokenizer::Rep::ReadVocabulary(const Json& model) {
  const Json& vocabulary = JsonMember(model, "vocab");
  if (!vocabulary.is_object()) return absl::DataLossError("model has no \"vocab\" object");
  const std::array<int32_t, 0x200> byte_of = BytesByCodePoint();
  SEMKV_ASSIGN_OR_RETURN(const bool ignore_merges, BoolMember(model, "ignore_merges", false));
  for (const auto& [token, value] : vocabulary.items()) {
    if (!value.is_number_unsigned() || value.get<uint64_t>() > uint64_t{kMaxId}) {
      return absl::DataLossError(absl::StrCat("vocab: the id of \"", token, "\" is ",
                                              JsonExcerpt(value), ", not in [0, ", kMaxId, "]"));
    }
    const int32_t id = value.get<int32_t>();
    SetToken(token, id, byte_of);
    if (ignore_merges) whole_pieces.emplace(bytes[id], id);
  }
  const std::array<uint32_t, 256> alphabet = ByteAlphabet();
  for (size_t byte = 0; byte < 256; ++byte) {
    std::string token;
    AppendUtf8(alphabet[byte], token);
    const auto found = ids.find(token);
    if (found == ids.end()) {
      return absl::DataLossError(
          absl::StrCat("vocab has no token for the byte ", byte, " of 256 (\"", token, "\")"));
    }
    byte_ids[byte] = found->second;
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Rep::ReadMerges(const Json& model) {
  const Json& merges = JsonMember(model, "merges");
  if (!merges.is_array()) return absl::DataLossError("model has no \"merges\" list");
  int32_t rank = 0;
  for (const Json& merge : merges) {
    std::pair<std::string, std::string> parts;
    SEMKV_RETURN_IF_ERROR(SplitMerge(merge, parts));
    const auto left = ids.find(parts.first);
    const auto right = ids.find(parts.second);
    const auto merged = ids.find(parts.first + parts.second);
    if (left == ids.end() || right == ids.end() || merged == ids.end()) {
      return absl::DataLossError(absl::StrCat("merge ", rank, " of ", merges.size(), ", ",
                                              JsonExcerpt(merge), ", names a token not in vocab"));
    }
    pairs.Add(left->second, right->second, rank++, merged->second);
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Rep::ReadAddedTokens(const Json& json) {
  const Json& list = JsonMember(json, "added_tokens");
  if (list.is_null()) return absl::OkStatus();
  if (!list.is_array()) return absl::DataLossError("added_tokens is not a list");
  const std::array<int32_t, 0x200> byte_of = BytesByCodePoint();
  int32_t next_id = static_cast<int32_t>(ids.size());
  for (const Json& entry : list) {
    AddedToken token;
    SEMKV_ASSIGN_OR_RETURN(token.content, StringMember(entry, "content", ""));
    SEMKV_ASSIGN_OR_RETURN(token.id, IntMember(entry, "id", -1, 0, kMaxId));
    if (token.id < 0) {
      return absl::DataLossError(absl::StrCat("added token ", JsonExcerpt(entry), " has no id"));
    }
    // `tokenizers` ignores the id and gives this one; a file that disagrees is refused.
    const int32_t given = TokenId(token.content) >= 0 ? TokenId(token.content) : next_id;
    if (token.id != given) {
      return absl::DataLossError(absl::StrCat("added token \"", token.content, "\" has the id ",
                                              token.id, ", its place in the list is ", given));
    }
    next_id = std::max(next_id, given + 1);
    for (const char* field : {"single_word", "lstrip", "rstrip"}) {
      SEMKV_ASSIGN_OR_RETURN(const bool value, BoolMember(entry, field, false));
      if (value) {
        return absl::UnimplementedError(absl::StrCat("added token \"", token.content, "\" has ",
                                                     field, " true; supported is false"));
      }
    }
    SEMKV_ASSIGN_OR_RETURN(token.normalized, BoolMember(entry, "normalized", true));
    SEMKV_ASSIGN_OR_RETURN(token.special, BoolMember(entry, "special", false));
    SetToken(token.content, token.id, byte_of);
    if (token.special) bytes[token.id].clear();
    if (token.content.empty()) continue;
    const uint8_t first = static_cast<uint8_t>(token.content[0]);
    added[token.normalized ? 1 : 0][first].push_back(std::move(token));
  }
  for (auto& pass : added) {
    for (std::vector<AddedToken>& tokens : pass) {
      std::stable_sort(tokens.begin(), tokens.end(), [](const AddedToken& a, const AddedToken& b) {
        return a.content.size() > b.content.size();
      });
    }
  }
  return absl::OkStatus();
}

absl::Status Tokenizer::Rep::ReadParts(const Json& json) {
  SEMKV_RETURN_IF_ERROR(CheckSupported(json));
  const Json& model = JsonMember(json, "model");
  SEMKV_RETURN_IF_ERROR(ReadVocabulary(model));
  SEMKV_RETURN_IF_ERROR(ReadMerges(model));
  SEMKV_RETURN_IF_ERROR(ReadAddedTokens(json));
  SEMKV_ASSIGN_OR_RETURN(pre_tokenizer, PreTokenizer::Create(JsonMember(json, "pre_tokenizer")));
  return absl::OkStatus();
}

int32_t Tokenizer::Rep::TokenId(absl::string_view token) const {
  const auto found = ids.find(token);
  return found == ids.end() ? -1 : found->second;
}

void Tokenizer::Rep::EncodePiece(const std::string& piece, std::vector<int32_t>& out) const {
  if (const auto whole = whole_pieces.find(piece); whole != whole_pieces.end()) {
    out.push_back(whole->second);
    return;
  }
  std::vector<int32_t> symbols(piece.size());
  for (size_t i = 0; i < piece.size(); ++i) symbols[i] = byte_ids[static_cast<uint8_t>(piece[i])];
  pairs.Merge(symbols);
  out.insert(out.end(), symbols.begin(), symbols.end());
}

const AddedToken* Tokenizer::Rep::AddedTokenAt(absl::string_view text, SpecialTokens special,
                                               size_t pass) const {
  for (const AddedToken& token : added[pass][static_cast<uint8_t>(text[0])]) {
    if (token.special && special == SpecialTokens::kAsText) continue;
    if (absl::StartsWith(text, token.content)) return &token;
  }
  return nullptr;
}

// Cuts the added tokens of `pass` out of the text; what lies between goes to the next pass, and
// after the last one to the pre-tokenizer.
void Tokenizer::Rep::EncodeText(absl::string_view text, SpecialTokens special, size_t pass,
                                std::vector<int32_t>& out) const {
  if (text.empty()) return;
  if (pass == added.size()) {
    for (const std::string& piece : pre_tokenizer.Split(text)) EncodePiece(piece, out);
    return;
  }
  size_t begin = 0;
  for (size_t i = 0; i < text.size();) {
    const AddedToken* token = AddedTokenAt(text.substr(i), special, pass);
    if (token == nullptr) {
      ++i;
      continue;
    }
    EncodeText(text.substr(begin, i - begin), special, pass + 1, out);
    out.push_back(token->id);
    i += token->content.size();
    begin = i;
  }
  EncodeText(text.substr(begin), special, pass + 1, out);
}

absl::StatusOr<std::unique_ptr<Tokenizer>> Tokenizer::Load(const std::string& path) {
  SEMKV_ASSIGN_OR_RETURN(const Json json, ReadJsonFile(path));
  auto rep = std::make_unique<Rep>();
  const absl::Status status = rep->ReadParts(json);
  if (!status.ok()) {
    return absl::Status(status.code(), absl::StrCat(path, ": ", status.message()));
  }
  return std::unique_ptr<Tokenizer>(new Tokenizer(std::move(rep)));
}

Tokenizer::Tokenizer(std::unique_ptr<Rep> rep) : rep_(std::move(rep)) {}

Tokenizer::~Tokenizer() = default;

int32_t Tokenizer::vocabulary_size() const { return static_cast<int32_t>(rep_->bytes.size()); }

std::vector<int32_t> Tokenizer::Encode(absl::string_view text, SpecialTokens special) const {
  std::vector<int32_t> ids;
  rep_->EncodeText(text, special, 0, ids);
  return ids;
}

std::string Tokenizer::Decode(absl::Span<const int32_t> ids) const {
  std::string text;
  for (const int32_t id : ids) absl::StrAppend(&text, TokenBytes(id));
  return text;
}

absl::string_view Tokenizer::TokenBytes(int32_t id) const {
  if (id < 0 || id >= vocabulary_size()) return {};
  return rep_->bytes[id];
}

int32_t Tokenizer::TokenId(absl::string_view token) const { return rep_->TokenId(token); }

}  // namespace semkv::reference
