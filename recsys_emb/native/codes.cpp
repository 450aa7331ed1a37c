// Rows of codebooks summed by packed codes: see codes.py.
//
// An id's codes are read and its rows added up in registers, where torch's operations write every step for all ids.
#include <immintrin.h>

#include <algorithm>
#include <cstdint>

namespace {

constexpr int LANES = 8;
constexpr int WIDEST = 8;    // vectors of columns summed at a time
constexpr long BLOCK = 512;  // ids that one thread takes at a time
constexpr long AHEAD = 8;    // ids between asking for codes and using them

struct Level {
    int64_t ids, bits, byte, row;  // covered ids, bits of a code, first byte, first row of the codebook
};

struct Lookup {
    const uint8_t* codes;
    long last;  // byte
    const float* books;
    long dim;
    long depth;
    const int64_t* ids;
    float* out;
};

// Columns `column` to `column` + V * LANES - 1, as far as there are so many, of the ids first..end-1 of one table.
template <int V>
void add_up(const Lookup& x, const Level* levels, long first, long end, long column) {
    const long tail = std::min<long>(LANES, x.dim - column - (V - 1) * LANES);
    const __m256i in_tail = _mm256_cmpgt_epi32(_mm256_set1_epi32(static_cast<int>(tail)),
                                               _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
    for (long i = first; i < end; ++i) {
        if (const int64_t later = i + AHEAD < end ? x.ids[i + AHEAD] : 0)
            for (const Level* level = levels; level < levels + x.depth && later < level->ids; ++level)
                _mm_prefetch(x.codes + level->byte + (later * level->bits >> 3), _MM_HINT_T0);
        const int64_t id = x.ids[i] < levels->ids ? x.ids[i] : 0;
        __m256 sum[V];
        for (auto& s : sum) s = _mm256_setzero_ps();
        for (const Level* level = levels; level < levels + x.depth && id < level->ids; ++level) {
            const int64_t bit = id * level->bits, byte = level->byte + (bit >> 3);
            const unsigned word = x.codes[byte] | x.codes[std::min<int64_t>(byte + 1, x.last)] << 8;
            const int64_t row = level->row + (word >> (bit & 7) & ((1u << level->bits) - 1));
            const float* from = x.books + row * x.dim + column;
            for (int v = 0; v < V - 1; ++v) sum[v] = _mm256_add_ps(sum[v], _mm256_loadu_ps(from + v * LANES));
            sum[V - 1] = _mm256_add_ps(sum[V - 1], _mm256_maskload_ps(from + (V - 1) * LANES, in_tail));
        }
        float* to = x.out + i * x.dim + column;
        for (int v = 0; v < V - 1; ++v) _mm256_storeu_ps(to + v * LANES, sum[v]);
        if (tail == LANES) {
            _mm256_storeu_ps(to + (V - 1) * LANES, sum[V - 1]);
        } else {  // masked stores are slow on AMD's
            alignas(32) float values[LANES];
            _mm256_store_ps(values, sum[V - 1]);
            for (long j = 0; j < tail; ++j) to[(V - 1) * LANES + j] = values[j];
        }
    }
}

using AddUp = void (*)(const Lookup&, const Level*, long, long, long);
constexpr AddUp ADD_UP[] = {add_up<1>, add_up<2>, add_up<3>, add_up<4>, add_up<5>, add_up<6>, add_up<7>, add_up<8>};

}  // namespace

extern "C" {

// codes [bytes]; books [rows, dim]; levels [tables, depth], those that cover an id before those that do not;
// ends [tables], where each table's ids end; ids [n]; out [n, dim]
void codes_decode(const uint8_t* codes, long bytes, const float* books, long dim, const Level* levels, long tables,
                  long depth, const int64_t* ends, const int64_t* ids, long n, float* out) {
    const Lookup lookup{codes, bytes - 1, books, dim, depth, ids, out};
#pragma omp parallel for schedule(static)
    for (long block = 0; block < n; block += BLOCK) {
        const long stop = std::min(block + BLOCK, n);
        long table = std::upper_bound(ends, ends + tables, block) - ends;
        for (long first = block; first < stop; ++table) {
            const long end = std::min<long>(stop, ends[table]);
            for (long column = 0; column < dim; column += WIDEST * LANES) {
                const long vectors = std::min<long>(WIDEST, (dim - column + LANES - 1) / LANES);
                ADD_UP[vectors - 1](lookup, levels + table * depth, first, end, column);
            }
            first = end;
        }
    }
}

}  // extern "C"
