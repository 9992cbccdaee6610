// UTF-8 without failure: text from anywhere is walked character by character, and what is no
// UTF-8 is reported as such, never lost.

#ifndef SEMKV_INTEGRATION_REFERENCE_UTF8_H_
#define SEMKV_INTEGRATION_REFERENCE_UTF8_H_

#include <cstddef>
#include <cstdint>
#include <string>

#include "absl/strings/string_view.h"

namespace semkv::reference {

// The length in bytes of the character that `text` begins with, 1 to 4; 0 if `text` is empty or
// begins with a byte that starts no well-formed character (Unicode 15, table 3-7). The character's
// code point goes to `code_point` unless that is null.
inline size_t Utf8CharacterBytes(absl::string_view text, uint32_t* code_point = nullptr) {
  const auto byte = [text](size_t i) { return static_cast<uint8_t>(text[i]); };
  if (text.empty()) return 0;
  const uint8_t first = byte(0);
  const size_t length = first < 0x80   ? 1
                        : first < 0xc2 ? 0
                        : first < 0xe0 ? 2
                        : first < 0xf0 ? 3
                        : first < 0xf5 ? 4
                                       : 0;
  if (length == 0 || text.size() < length) return 0;
  uint32_t value = length == 1 ? first : first & (0xffu >> (length + 1));
  for (size_t i = 1; i < length; ++i) {
    if ((byte(i) & 0xc0) != 0x80) return 0;
    value = value << 6 | (byte(i) & 0x3f);
  }
  // Overlong forms of 3 and 4 bytes, surrogates, and what lies beyond Unicode.
  if (length == 3 && (value < 0x800 || (value >= 0xd800 && value < 0xe000))) return 0;
  if (length == 4 && (value < 0x10000 || value > 0x10ffff)) return 0;
  if (code_point != nullptr) *code_point = value;
  return length;
}

// Appends `code_point`, below 0x800, as UTF-8.
inline void AppendUtf8(uint32_t code_point, std::string& text) {
  if (code_point < 0x80) {
    text.push_back(static_cast<char>(code_point));
  } else {
    text.push_back(static_cast<char>(0xc0 | code_point >> 6));
    text.push_back(static_cast<char>(0x80 | (code_point & 0x3f)));
  }
}

}  // namespace semkv::reference

#endif  // SEMKV_INTEGRATION_REFERENCE_UTF8_H_
