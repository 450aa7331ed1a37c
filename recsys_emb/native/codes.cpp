// Rows of codebooks summed by packed codes: see codes.py.
//
// An id's codes are read and its rows added up in registers, where torch's operations write every step for all ids.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int LANES = 8;
constexpr long BLOCK = 512;  // ids that one thread takes at a time
constexpr long MOST = 32;    // levels

struct Level {
    int64_t ids, bits, byte, row;  // covered ids, bits of a code, first byte, first row of the codebook
};

inline __m256i lanes(long count) {
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(count)), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
}

}  // namespace

extern "C" {

// codes [bytes]; books [rows, dim]; levels [tables, depth], those that cover an id before those that do not;
// ends [tables], where each table's ids end; ids [n]; out [n, dim]
void codes_decode(const uint8_t* codes, long bytes, const float* books, long dim, const Level* levels, long tables,
                  long depth, const int64_t* ends, const int64_t* ids, long n, float* out) {
    const long whole = dim / LANES * LANES;
    const __m256i rest = lanes(dim - whole);
#pragma omp parallel for schedule(static)
    for (long block = 0; block < n; block += BLOCK) {
        const float* rows[MOST];
        long table = std::upper_bound(ends, ends + tables, block) - ends;
        for (long i = block; i < std::min(block + BLOCK, n); ++i) {
            while (i >= ends[table]) ++table;
            const Level* level = levels + table * depth;
            const int64_t id = ids[i] < level->ids ? ids[i] : 0;
            long found = 0;
            for (; found < depth && id < level->ids; ++found, ++level) {
                const int64_t bit = id * level->bits, byte = level->byte + (bit >> 3);
                const unsigned word = codes[byte] | (byte + 1 < bytes ? codes[byte + 1] << 8 : 0);
                rows[found] = books + (level->row + (word >> (bit & 7) & ((1u << level->bits) - 1))) * dim;
            }
            float* to = out + i * dim;
            for (long c = 0; c < whole; c += LANES) {
                __m256 sum = _mm256_loadu_ps(rows[0] + c);
                for (long l = 1; l < found; ++l) sum = _mm256_add_ps(sum, _mm256_loadu_ps(rows[l] + c));
                _mm256_storeu_ps(to + c, sum);
            }
            if (whole < dim) {
                __m256 sum = _mm256_maskload_ps(rows[0] + whole, rest);
                for (long l = 1; l < found; ++l) sum = _mm256_add_ps(sum, _mm256_maskload_ps(rows[l] + whole, rest));
                alignas(32) float values[LANES];
                _mm256_store_ps(values, sum);
                std::copy(values, values + dim - whole, to + whole);
            }
        }
    }
}

}  // extern "C"
