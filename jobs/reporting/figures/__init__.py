"""What a page shows as pictures: charts of numbers, views, neighbours."""
