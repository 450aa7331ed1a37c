// Criteo's rows, tab-separated: [label,] 13 integers, 26 hexadecimal numbers. Anything out of the ordinary is refused,
// so that what is read here is what the slower reader would have read.

#include <cstdint>
#include <cstring>

namespace {

constexpr long INTEGERS = 13, CATEGORIES = 26, COLUMNS = INTEGERS + CATEGORIES, DIGITS = 18;

constexpr uint64_t each(uint8_t byte) { return 0x0101010101010101u * byte; }

// 0x80 in the bytes of x, all below 0x80, that are at least `least`.
inline uint64_t from(uint64_t x, uint8_t least) { return (x + each(0x80 - least)) & each(0x80); }

// The number that 8 hexadecimal digits spell, first digit first; -1 when one of them is none.
inline int64_t eight_digits(const char* text) {
  uint64_t x;
  std::memcpy(&x, text, 8);
  if (x & each(0x80)) return -1;
  const uint64_t lower = x | each(0x20);  // turns no other character into a letter of the alphabet
  const uint64_t letter = from(lower, 'a') & ~from(lower, 'g');
  const uint64_t digit = from(x, '0') & ~from(x, '9' + 1);
  if ((letter | digit) != each(0x80)) return -1;
  uint64_t nibbles = (x & each(0x0f)) + (letter >> 7) * 9;
  nibbles = __builtin_bswap64(nibbles);
  nibbles = (nibbles | nibbles >> 4) & 0x00ff00ff00ff00ffu;
  nibbles = (nibbles | nibbles >> 8) & 0x0000ffff0000ffffu;
  return static_cast<int64_t>((nibbles | nibbles >> 16) & 0xffffffffu);
}

inline int hex_digit(char c) {
  if (c >= '0' && c <= '9') return c - '0';
  c |= 0x20;
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

// The columns of `rows` rows and which of their values are there.
struct Table {
  int64_t* values;
  uint8_t* present;
  long* missing;
  long rows, bitmap;

  void set(long column, long row, int64_t value) const {
    values[column * rows + row] = value;
    present[column * bitmap + row / 8] |= 1u << row % 8;
  }
};

}  // namespace

// text:    `bytes` bytes, the last a line end
// labels:  [rows], or null where lines have none
// values:  [39, rows]; hexadecimal numbers of fewer than 8 digits get 2^32 for each digit less
// present: [39, (rows + 7) / 8] bits, all 0
// missing: [39], all 0; gets the number of empty values
// Returns whether the lines were `rows` ordinary ones.
extern "C" int criteo_parse(const char* text, long bytes, long rows, uint8_t* labels, int64_t* values,
                            uint8_t* present, long* missing) {
  const Table out{values, present, missing, rows, (rows + 7) / 8};
  const char* const end = text + bytes;
  const char* at = text;
  for (long row = 0; row < rows; ++row) {
    if (labels) {
      if (end - at < 2 || (*at != '0' && *at != '1') || at[1] != '\t') return 0;
      labels[row] = *at - '0';
      at += 2;
    }
    for (long column = 0; column < COLUMNS; ++column, ++at) {
      const char stop = column == COLUMNS - 1 ? '\n' : '\t';
      if (at >= end) return 0;
      if (*at == stop) {
        ++out.missing[column];
        continue;
      }
      const char* const begin = at;
      int64_t value = 0;
      if (column < INTEGERS) {
        const bool negative = *at == '-';
        at += negative;
        const char* const first = at;
        while (*at >= '0' && *at <= '9' && at - first < DIGITS) value = 10 * value + (*at++ - '0');
        if (at == first) return 0;
        if (negative) value = -value;
      } else if (end - at > 8 && at[8] == stop && (value = eight_digits(at)) >= 0) {
        at += 8;
      } else {
        value = 0;
        for (int digit; at - begin < 8 && (digit = hex_digit(*at)) >= 0; ++at) value = 16 * value + digit;
        if (at == begin) return 0;
        value += (8 - (at - begin)) << 32;
      }
      if (at >= end || *at != stop) return 0;
      out.set(column, row, value);
    }
  }
  return at == end;
}
