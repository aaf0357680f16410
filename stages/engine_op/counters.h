// How often each region ran in an engine and in TensorFlow, and why. Process-wide.

#ifndef GRAFTRT_ENGINE_OP_COUNTERS_H_
#define GRAFTRT_ENGINE_OP_COUNTERS_H_

#include <atomic>
#include <map>
#include <memory>
#include <mutex>
#include <set>
#include <string>

#include "tensorflow/core/platform/logging.h"

namespace graftrt {

class RegionCounters {
 public:
  explicit RegionCounters(std::string region) : region_(std::move(region)) {}

  void CountEngineCall() { engine_calls_.fetch_add(1, std::memory_order_relaxed); }

  // Logs the first time that this region meets this reason in the process.
  void CountFallback(const std::string& reason, const std::string& detail, const std::string& node) {
    {
      std::lock_guard<std::mutex> lock(mutex_);
      ++fallbacks_[reason];
      if (!logged_.insert(reason).second) return;
    }
    LOG(WARNING) << "EngineCall: " << region_ << " (node " << node << ") can't run in an engine: " << reason
                 << (detail.empty() ? "" : ": ") << detail << " (logged once)";
  }

  void Reset() {
    std::lock_guard<std::mutex> lock(mutex_);
    engine_calls_ = 0;
    fallbacks_.clear();
  }

  // Appends `"region": {...}`; nothing if the region has not run.
  void AppendJson(std::string* json) const {
    std::lock_guard<std::mutex> lock(mutex_);
    const int64_t calls = engine_calls_;
    if (calls == 0 && fallbacks_.empty()) return;
    if (json->size() > 1) json->append(", ");
    json->append(Quoted(region_) + ": {\"engine_calls\": " + std::to_string(calls) + ", \"fallbacks\": {");
    const char* separator = "";
    for (const auto& [reason, count] : fallbacks_) {
      json->append(separator + Quoted(reason) + ": " + std::to_string(count));
      separator = ", ";
    }
    json->append("}}");
  }

 private:
  static std::string Quoted(const std::string& text) {
    std::string quoted = "\"";
    for (const char c : text) {
      if (c == '"' || c == '\\') {
        quoted += '\\';
        quoted += c;
      } else if (static_cast<unsigned char>(c) < 0x20) {
        char escape[7];
        snprintf(escape, sizeof(escape), "\\u%04x", c);
        quoted += escape;
      } else {
        quoted += c;
      }
    }
    return quoted + '"';
  }

  const std::string region_;
  std::atomic<int64_t> engine_calls_{0};
  mutable std::mutex mutex_;
  std::map<std::string, int64_t> fallbacks_;
  std::set<std::string> logged_;
};

class Counters {
 public:
  // Never destroyed, like the runtime's slot.
  static Counters& Get() {
    static Counters* counters = new Counters;
    return *counters;
  }

  // The result lives as long as the process.
  RegionCounters* ForRegion(const std::string& region) {
    std::lock_guard<std::mutex> lock(mutex_);
    std::unique_ptr<RegionCounters>& counters = regions_[region];
    if (counters == nullptr) counters = std::make_unique<RegionCounters>(region);
    return counters.get();
  }

  void Reset() {
    std::lock_guard<std::mutex> lock(mutex_);
    for (auto& [region, counters] : regions_) counters->Reset();
  }

  std::string Json() const {
    std::lock_guard<std::mutex> lock(mutex_);
    std::string json = "{";
    for (const auto& [region, counters] : regions_) counters->AppendJson(&json);
    return json + "}";
  }

 private:
  mutable std::mutex mutex_;
  std::map<std::string, std::unique_ptr<RegionCounters>> regions_;
};

}  // namespace graftrt

#endif  // GRAFTRT_ENGINE_OP_COUNTERS_H_
